"""Loggers of services that others run, each thin on the service's own package."""
