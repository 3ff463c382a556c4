"""The speech server: HTTP, WebSocket and Wyoming in front of one loaded model. Needs the extra `serve`."""
