"""Policies: pure functions from observations to proposals."""

from trimtab.controller.policies.policy import JsonState, Policy, build, kinds, strangers

__all__ = ["JsonState", "Policy", "build", "kinds", "strangers"]
