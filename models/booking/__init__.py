"""Booking.com WSDM WebTour 2021: the winning solution (Schifferer et al., CEUR-WS Vol-2855, challenge_short_2)."""
