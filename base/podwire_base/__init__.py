"""The ground floor: what every part of podwire stands on. It imports no other podwire package."""
