"""The REST side: it appends submitted events to the inbox and answers from the views."""
