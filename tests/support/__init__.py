"""What the suites share: real servers and real roles, started on free ports and in folders of their own."""
