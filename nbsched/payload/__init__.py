"""Bytes of users: how they are pickled, packed, signed and checked.

The leader uses `envelope` alone; only kernels and clients unpickle.
"""
