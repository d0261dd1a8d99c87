"""The only public port."""
