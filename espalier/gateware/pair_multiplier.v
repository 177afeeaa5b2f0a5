// Two products with a common operand by one hard multiplier: two cycles from operands to products, as espalier_multiplier.
// With S = 2 * WIDTH, (high * 2^S + low) * x + 2^(S-1) = high * x * 2^S + (low * x + 2^(S-1)), and the bracket is in
// 0..2^S - 1: the bits from S up are the high product, those below the low one with its sign inverted. S one bit
// smaller would do for all products but that of the two least operands. The packed operand takes 3 * WIDTH + 1 bits, 25
// for WIDTH 8. A DSP48E1 holds all of it: the pre-adder packs, and the adder behind the multiplier gets the constant.
module espalier_pair_multiplier #(
    parameter WIDTH = 8
) (
    input clk,
    input signed [WIDTH-1:0] x,
    input signed [WIDTH-1:0] low,
    input signed [WIDTH-1:0] high,
    output signed [2*WIDTH-1:0] low_product,
    output signed [2*WIDTH-1:0] high_product
);
    localparam SHIFT = 2 * WIDTH;
    wire signed [3*WIDTH:0] shifted = {high[WIDTH-1], high, {SHIFT{1'b0}}};
    wire signed [4*WIDTH-1:0] half = 1 << SHIFT - 1;
    reg signed [WIDTH-1:0] a;
    reg signed [3*WIDTH:0] both;
    reg signed [4*WIDTH-1:0] p;
    always @(posedge clk) begin
        a <= x;
        both <= shifted + low;
        p <= both * a + half;
    end
    assign low_product = {~p[SHIFT-1], p[SHIFT-2:0]};
    assign high_product = p[4*WIDTH-1:SHIFT];
endmodule
