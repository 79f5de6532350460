"""Every default: dataclasses that node widgets and command line options are made from. Light to import beside torch."""
