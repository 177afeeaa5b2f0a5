// One synchronous RAM: one read and one write per cycle, read data one cycle after the address. A word that
// is read in the cycle in which it is written is undefined (no_rw_check: no logic that would see to it),
// as are the contents at first: the host writes them.
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
    (* no_rw_check *)
    reg [WIDTH-1:0] words [0:DEPTH-1];
    always @(posedge clk) begin
        read_data <= words[read_address];
        if (write_en) words[write_address] <= write_data;
    end
endmodule
