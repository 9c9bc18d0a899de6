"""What several studies are made of; no experiment by itself."""
