"""What happens around the videos, counted: raw rows, hourly and daily rollups, who viewed what."""
