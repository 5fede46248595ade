"""How the embedded models were made: the world that they know and the program that trains them."""
