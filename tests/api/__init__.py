"""Tests of the API: one file a route, end to end; what can be told without servers, alone."""
