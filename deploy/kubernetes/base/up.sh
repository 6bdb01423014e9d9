#!/bin/bash
# Runs beside the head's Ray, which KubeRay starts: controller, API and page as soon as Ray answers. What `up` prints
# holds the admin's token and has no place in a log.
until trimtab up --address 127.0.0.1:6379 --host 0.0.0.0 --allow-host "$TRIMTAB_HOST" --log-format json >/dev/null; do
  sleep 2
done
