"""A bookshop: catalogue, customers, carts, orders, and the warehouse that ships them."""
