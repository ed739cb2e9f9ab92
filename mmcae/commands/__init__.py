"""Commands: what the programs in tools/ do. They stand on top of everything; nothing imports them."""
