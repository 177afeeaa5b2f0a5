// Synchronous RAMs: one read and one write per cycle. A word that is read in the cycle in which it is written is
// undefined (no_rw_check: no logic that would see to it), as are the contents at first: the host writes them. With
// ESPALIER_SIMULATION such a word is read inverted, so that nothing that passes in simulation relies on it.

// Read data one cycle after the address.
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
`ifdef ESPALIER_SIMULATION
        read_data <= words[read_address] ^ {WIDTH{write_en && write_address == read_address}};
`else
        read_data <= words[read_address];
`endif
        if (write_en) words[write_address] <= write_data;
    end
endmodule

// Read data two cycles after the address, in banks with a register behind each, so that no path goes through RAM and
// multiplexer. With ESPALIER_SIMULATION one memory that behaves alike: to a simulator banks are only work.
module espalier_banked_ram #(
    parameter WIDTH = 1,
    parameter DEPTH = 2,
    parameter ADDRESS = 1,
    parameter BANK_BITS = 10
) (
    input clk,
    input [ADDRESS-1:0] read_address,
    output reg [WIDTH-1:0] read_data,
    input write_en,
    input [ADDRESS-1:0] write_address,
    input [WIDTH-1:0] write_data
);
`ifdef ESPALIER_SIMULATION
    wire [WIDTH-1:0] word;
    espalier_ram #(.WIDTH(WIDTH), .DEPTH(DEPTH), .ADDRESS(ADDRESS)) ram (
        .clk(clk), .read_address(read_address), .read_data(word),
        .write_en(write_en), .write_address(write_address), .write_data(write_data));
    always @(posedge clk) read_data <= word;
`else
    localparam LOW = ADDRESS < BANK_BITS ? ADDRESS : BANK_BITS;  // bits of the address inside a bank
    localparam BANKS = (DEPTH - 1 >> LOW) + 1;
    localparam LAST = DEPTH - (BANKS - 1 << LOW);
    reg [ADDRESS-1:0] asked;
    wire [BANKS*WIDTH-1:0] found;
    genvar bank;
    generate
        for (bank = 0; bank < BANKS; bank = bank + 1) begin : banks
            wire [WIDTH-1:0] word;
            reg [WIDTH-1:0] held;
            reg chosen;
            espalier_ram #(.WIDTH(WIDTH), .DEPTH(bank < BANKS - 1 ? 1 << LOW : LAST < 2 ? 2 : LAST), .ADDRESS(LOW)) ram (
                .clk(clk), .read_address(read_address[LOW-1:0]), .read_data(word),
                .write_en(write_en && write_address >> LOW == bank),
                .write_address(write_address[LOW-1:0]), .write_data(write_data));
            always @(posedge clk) begin
                held <= word;
                chosen <= asked == bank;
            end
            assign found[bank*WIDTH +: WIDTH] = held & {WIDTH{chosen}};
        end
    endgenerate
    always @(posedge clk) asked <= read_address >> LOW;
    integer k;
    always @* begin
        read_data = 0;
        for (k = 0; k < BANKS; k = k + 1) read_data = read_data | found[k*WIDTH +: WIDTH];
    end
`endif
endmodule
