"""The controller: domain types, policies, engine, journal and the controller actor."""
