"""How the embedded models were made: the world they know and the command that trains them."""
