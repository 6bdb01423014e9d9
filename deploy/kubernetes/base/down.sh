#!/bin/bash
# Before the head's pod ends: the API closes its streams, then Ray ends. Half of terminationGracePeriodSeconds at most.
if pkill --signal TERM --full 'trimtab up'; then
  for _ in {1..60}; do
    pgrep --full 'trimtab up' >/dev/null || break
    sleep 0.2
  done
fi
ray stop --grace-period 15
