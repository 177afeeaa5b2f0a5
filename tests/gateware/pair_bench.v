// Pairs of products of 2 to 8 bits beside plain ones, in the place of an accelerator: all operands, one after another.
// After 2^24 cycles and the last products read_data has a bit for each width at which any has differed, and bit 31.
module espalier(
    input clk, input rst, input write_valid, input [63:0] write, input [31:0] read_address, output write_ready,
    output [31:0] read_data, output busy, output position, output issuing, output gradient_valid,
    output gradient_address, output [31:0] gradient
);
    assign {write_ready, busy, position, issuing, gradient_valid, gradient_address, gradient} = 38'd0;
    reg [24:0] count = 0;
    reg [8:0] differed = 0;
    reg [1:0] started = 0;
    always @(posedge clk) begin
        count <= count + 1;
        started <= {started[0], 1'b1};
    end
    genvar bits;
    generate
        for (bits = 2; bits <= 8; bits = bits + 1) begin : width
            wire signed [bits-1:0] x = count[bits-1:0], low = count[2*bits-1:bits], high = count[3*bits-1:2*bits];
            wire signed [2*bits-1:0] low_product, high_product;
            reg signed [2*bits-1:0] low_first, high_first, low_then, high_then;
            espalier_pair_multiplier #(.WIDTH(bits)) pair(
                .clk(clk), .x(x), .low(low), .high(high), .low_product(low_product), .high_product(high_product));
            always @(posedge clk) begin
                low_first <= low * x;
                high_first <= high * x;
                low_then <= low_first;
                high_then <= high_first;
                if (started[1] && (low_product != low_then || high_product != high_then)) differed[bits] <= 1;
            end
        end
    endgenerate
    reg whole = 0;
    always @(posedge clk) if (count == 25'h1000002) whole <= 1;
    assign read_data = {whole, 22'd0, differed};
endmodule
