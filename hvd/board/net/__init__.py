"""What the other end of a network card's cable is plugged into: a tap of the host, a user-mode network, nothing."""
