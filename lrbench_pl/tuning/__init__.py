"""How a policy is found: range test, online composer, selection and look-up."""
