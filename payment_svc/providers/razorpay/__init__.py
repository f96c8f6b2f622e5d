"""The adapter to Razorpay."""
