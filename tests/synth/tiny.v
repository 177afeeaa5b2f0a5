module tiny(input clk, input we, input [3:0] step, input signed [15:0] a, input signed [15:0] b,
            output reg signed [39:0] acc);
  reg signed [15:0] ram [0:1023];
  reg signed [15:0] x, y, w;
  reg signed [31:0] product;
  reg [9:0] address;
  always @(posedge clk) begin
    address <= address + step;
    if (we) ram[address] <= a;
    x <= ram[address];
    y <= x;
    w <= b;
    product <= y * w;
    acc <= acc + product;
  end
endmodule
