"""Run the synthesis tools on a plain Verilog file and read their own reports into records."""
