// Netlist and source of ``cells`` side by side, in the place of an accelerator: read_data has a bit for
// each output that has differed. At first all words are written, then random ones are written and read, also the same.
module espalier(
    input clk, input rst, input write_valid, input [63:0] write, input [31:0] read_address, output write_ready,
    output [31:0] read_data, output busy, output position, output issuing, output gradient_valid,
    output gradient_address, output [31:0] gradient
);
    assign {write_ready, busy, position, issuing, gradient_valid, gradient_address, gradient} = 38'd0;
    reg [63:0] random = 64'h9e3779b97f4a7c15, last;
    reg [12:0] count = 0;
    reg [4:0] differed = 0;
    wire [62:0] words_a, words_b;
    wire [8:0] entry_a, entry_b;
    wire [17:0] registered_a, registered_b;
    wire [35:0] signed_a, signed_b, unsigned_a, unsigned_b;
    wire [10:0] from = count[12] ? {7'd0, random[57:54]} * 11'd129 : random[57:47];
    wire [10:0] to = count[12] ? {7'd0, random[43:40]} * 11'd129 : count[10:0];
    wire enable = random[36] || !count[12];
    cells a(
        .clk(clk), .read_address(from), .write_address(to), .write_en(enable), .data(random[35:0]), .words(words_a),
        .entry(entry_a), .signed_product(signed_a), .unsigned_product(unsigned_a), .registered_product(registered_a));
    source b(
        .clk(clk), .read_address(from), .write_address(to), .write_en(enable), .data(random[35:0]), .words(words_b),
        .entry(entry_b), .signed_product(signed_b), .unsigned_product(unsigned_b), .registered_product(registered_b));
    always @(posedge clk) begin
        last = random ^ random << 13;
        last = last ^ last >> 7;
        random <= last ^ last << 17;
        count <= count[12] ? 13'h1000 : count + 1;
        if (count[12])
            differed <= differed | {registered_a != registered_b, unsigned_a != unsigned_b, signed_a != signed_b,
                                    entry_a != entry_b, words_a != words_b};
    end
    assign read_data = {27'd0, differed};
endmodule
