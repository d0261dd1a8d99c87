"""Generic parts that know no model, device or deployment."""
