"""Booking.com WSDM WebTour 2021, as the winners did it (Schifferer et al., CEUR-WS Vol-2855, challenge_short_2)."""
