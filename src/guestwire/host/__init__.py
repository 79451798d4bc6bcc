"""What guestwire asks of Linux: interfaces, XDP programs, rights; no frame passes through here."""
