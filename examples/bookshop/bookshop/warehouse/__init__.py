"""The warehouse: a bounded context of its own, with its own tables and its own engine.

It learns of an order by a message and knows nothing of the shop's tables.
"""
