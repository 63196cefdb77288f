"""The page of `cm3leon demo`: what the tabs ask of a bundle, how they show it, and the server."""
