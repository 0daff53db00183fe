"""Hostile inputs by the thousand: `targets` says what is fed, `mutations` how it is spoilt, `mutate` runs for hours."""
