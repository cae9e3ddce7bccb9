"""What tests share: real servers, and small builders. No tests here."""
