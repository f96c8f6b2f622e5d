"""Payments and refunds through providers. What they pay for is booking_svc's business."""
