// One synchronous RAM: one read and one write per cycle, read data one cycle after the address, the old
// word where both meet. Its contents are undefined at first: the host writes them.
module espalier_ram #(
    parameter WIDTH = 1,
    parameter DEPTH = 2,
    parameter ADDRESS = 1
) (
    input clk,
    input [ADDRESS-1:0] read_address,
    output reg [WIDTH-1:0] read_data,
    input write_en,
    input [ADDRESS-1:0] write_address,
    input [WIDTH-1:0] write_data
);
    reg [WIDTH-1:0] words [0:DEPTH-1];
    always @(posedge clk) begin
        read_data <= words[read_address];
        if (write_en) words[write_address] <= write_data;
    end
endmodule
