"""Mail: queued in the transaction of what it tells about, sent by a loop, rendered from files.

queue.py is the table, sender.py the loop, smtp.py and files.py the two ways out,
message.py the MIME form, templates.py the texts. What a mail says, and to whom,
belongs to the service that sends it.
"""
