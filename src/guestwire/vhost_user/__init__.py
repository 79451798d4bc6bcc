"""The vhost-user protocol, backend side: messages, session, transport."""
