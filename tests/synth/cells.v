// Each way in which synthesis for ECP5 uses a hard block: memories of 36, 18 and 9 bits, a table, and products.
module cells(
    input clk,
    input [10:0] read_address,
    input [10:0] write_address,
    input write_en,
    input [35:0] data,
    output [62:0] words,
    output reg [8:0] entry,
    output [35:0] signed_product,
    output [35:0] unsigned_product,
    output [17:0] registered_product
);
    espalier_ram #(.WIDTH(36), .DEPTH(512), .ADDRESS(9)) wide (
        .clk(clk), .read_address(read_address[8:0]), .read_data(words[35:0]), .write_en(write_en),
        .write_address(write_address[8:0]), .write_data(data));
    espalier_ram #(.WIDTH(18), .DEPTH(1024), .ADDRESS(10)) middle (
        .clk(clk), .read_address(read_address[9:0]), .read_data(words[53:36]), .write_en(write_en),
        .write_address(write_address[9:0]), .write_data(data[17:0]));
    espalier_ram #(.WIDTH(9), .DEPTH(2048), .ADDRESS(11)) narrow (
        .clk(clk), .read_address(read_address), .read_data(words[62:54]), .write_en(write_en),
        .write_address(write_address), .write_data(data[8:0]));
    reg [8:0] entries [0:1023];
    integer k;
    initial for (k = 0; k < 1024; k = k + 1) entries[k] = k * k + (k >> 3);
    always @(posedge clk) entry <= entries[read_address[9:0]];
    assign signed_product = $signed(data[35:18]) * $signed(data[17:0]);
    assign unsigned_product = data[35:18] * data[17:0];
    espalier_multiplier #(.WIDTH(9)) multiplier (
        .clk(clk), .x(data[8:0]), .y(data[17:9]), .product(registered_product));
endmodule
