"""What a later layer reads, how far the network thins, and which vectors a text reaches."""
