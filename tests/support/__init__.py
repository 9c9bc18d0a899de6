"""Independent definitions and checks that several tests share."""
