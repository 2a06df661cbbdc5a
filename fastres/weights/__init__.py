"""Parameters on their way to operators: folded and packed, and never stale."""
