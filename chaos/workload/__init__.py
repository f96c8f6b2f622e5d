"""Who calls: customers with their behaviour, and the events that they book."""
