"""Strict importers and exporters for other people's weights; no pickle is executed."""
