"""Values that a completion has extracted (dates, phone numbers, addresses, ...), field by field against gold."""
