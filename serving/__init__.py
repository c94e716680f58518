"""Requests in, answers and a traffic log out; knows HTTP and no trainer."""
