"""Mail: queued in the transaction of its cause, sent by a loop, rendered from templates.

The table is in queue.py, the loop in sender.py, the transports in smtp.py and files.py.
Contents and recipients belong to the service that sends the mail.
"""
