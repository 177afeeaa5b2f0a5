// What two hard blocks of ECP5 do, for simulation of netlists, as far as Yosys and our gateware use them (Lattice
// FPGA-TN-02204 and FPGA-TN-02205). Yosys has models of the other cells. A mode without a model is refused when the
// netlist is read: by a pin or a module that is not there.

// The product of two operands of 18 bits, each signed or not, with a register at each and one behind the product where
// the parameters say CLK0. An operand out of a chain of multipliers is not modelled: then the product is wrong.
module MULT18X18D(
    input A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11, A12, A13, A14, A15, A16, A17,
    input B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12, B13, B14, B15, B16, B17,
    input C0, C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13, C14, C15, C16, C17,
    input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB, CLK0, CE0, RST0,
    output P0, P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11, P12, P13, P14, P15, P16, P17, P18, P19, P20, P21, P22,
        P23, P24, P25, P26, P27, P28, P29, P30, P31, P32, P33, P34, P35
);
    parameter REG_INPUTA_CLK = "NONE", REG_INPUTB_CLK = "NONE", REG_OUTPUT_CLK = "NONE", GSR = "ENABLED";
    wire [17:0] a, b;
    assign a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    assign b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    wire signed [18:0] x = {SIGNEDA & a[17], a}, y = {SIGNEDB & b[17], b};
    reg signed [18:0] xr, yr;
    reg signed [35:0] pr;
    wire signed [18:0] xs = REG_INPUTA_CLK == "CLK0" ? xr : x, ys = REG_INPUTB_CLK == "CLK0" ? yr : y;
    wire signed [35:0] product = SOURCEA || SOURCEB ? ~(xs * ys) : xs * ys;
    always @(posedge CLK0)
        if (RST0) begin
            xr <= 0;
            yr <= 0;
            pr <= 0;
        end else if (CE0) begin
            xr <= x;
            yr <= y;
            pr <= product;
        end
    assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18, P17, P16, P15,
        P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} = REG_OUTPUT_CLK == "CLK0" ? pr : product;
    generate
        if (REG_INPUTA_CLK != "NONE" && REG_INPUTA_CLK != "CLK0" || REG_INPUTB_CLK != "NONE" && REG_INPUTB_CLK != "CLK0"
                || REG_OUTPUT_CLK != "NONE" && REG_OUTPUT_CLK != "CLK0")
            mode_of_MULT18X18D_without_a_model refused();
    endgenerate
endmodule

// 2048 bytes of 9 bits. Each port has 1 or 2 of them at a time; or A writes 4 and B reads 4. A byte that one port reads
// while the other writes it is undefined: it is read inverted, as by espalier_ram.
module DP16KD(
    input DIA0, DIA1, DIA2, DIA3, DIA4, DIA5, DIA6, DIA7, DIA8, DIA9, DIA10, DIA11, DIA12, DIA13, DIA14, DIA15, DIA16,
        DIA17,
    input DIB0, DIB1, DIB2, DIB3, DIB4, DIB5, DIB6, DIB7, DIB8, DIB9, DIB10, DIB11, DIB12, DIB13, DIB14, DIB15, DIB16,
        DIB17,
    input ADA0, ADA1, ADA2, ADA3, ADA4, ADA5, ADA6, ADA7, ADA8, ADA9, ADA10, ADA11, ADA12, ADA13,
    input ADB0, ADB1, ADB2, ADB3, ADB4, ADB5, ADB6, ADB7, ADB8, ADB9, ADB10, ADB11, ADB12, ADB13,
    input CLKA, CEA, OCEA, WEA, RSTA, CSA0, CSA1, CSA2, CLKB, CEB, OCEB, WEB, RSTB, CSB0, CSB1, CSB2,
    output DOA0, DOA1, DOA2, DOA3, DOA4, DOA5, DOA6, DOA7, DOA8, DOA9, DOA10, DOA11, DOA12, DOA13, DOA14, DOA15,
        DOA16, DOA17,
    output DOB0, DOB1, DOB2, DOB3, DOB4, DOB5, DOB6, DOB7, DOB8, DOB9, DOB10, DOB11, DOB12, DOB13, DOB14, DOB15,
        DOB16, DOB17
);
    parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18, REGMODE_A = "NOREG", REGMODE_B = "NOREG", RESETMODE = "SYNC";
    parameter ASYNC_RESET_RELEASE = "SYNC", CSDECODE_A = "0b000", CSDECODE_B = "0b000", WRITEMODE_A = "NORMAL";
    parameter WRITEMODE_B = "NORMAL", CLKAMUX = "CLKA", CLKBMUX = "CLKB", GSR = "ENABLED", INIT_DATA = "STATIC";
    parameter [319:0] INITVAL_00 = 0, INITVAL_01 = 0, INITVAL_02 = 0, INITVAL_03 = 0, INITVAL_04 = 0, INITVAL_05 = 0,
        INITVAL_06 = 0, INITVAL_07 = 0, INITVAL_08 = 0, INITVAL_09 = 0, INITVAL_0A = 0, INITVAL_0B = 0,
        INITVAL_0C = 0, INITVAL_0D = 0, INITVAL_0E = 0, INITVAL_0F = 0, INITVAL_10 = 0, INITVAL_11 = 0,
        INITVAL_12 = 0, INITVAL_13 = 0, INITVAL_14 = 0, INITVAL_15 = 0, INITVAL_16 = 0, INITVAL_17 = 0,
        INITVAL_18 = 0, INITVAL_19 = 0, INITVAL_1A = 0, INITVAL_1B = 0, INITVAL_1C = 0, INITVAL_1D = 0,
        INITVAL_1E = 0, INITVAL_1F = 0, INITVAL_20 = 0, INITVAL_21 = 0, INITVAL_22 = 0, INITVAL_23 = 0,
        INITVAL_24 = 0, INITVAL_25 = 0, INITVAL_26 = 0, INITVAL_27 = 0, INITVAL_28 = 0, INITVAL_29 = 0,
        INITVAL_2A = 0, INITVAL_2B = 0, INITVAL_2C = 0, INITVAL_2D = 0, INITVAL_2E = 0, INITVAL_2F = 0,
        INITVAL_30 = 0, INITVAL_31 = 0, INITVAL_32 = 0, INITVAL_33 = 0, INITVAL_34 = 0, INITVAL_35 = 0,
        INITVAL_36 = 0, INITVAL_37 = 0, INITVAL_38 = 0, INITVAL_39 = 0, INITVAL_3A = 0, INITVAL_3B = 0,
        INITVAL_3C = 0, INITVAL_3D = 0, INITVAL_3E = 0, INITVAL_3F = 0;
    localparam [20479:0] INITIAL = {INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A,
        INITVAL_39, INITVAL_38, INITVAL_37, INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32, INITVAL_31,
        INITVAL_30, INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B, INITVAL_2A, INITVAL_29, INITVAL_28,
        INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24, INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20, INITVAL_1F,
        INITVAL_1E, INITVAL_1D, INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18, INITVAL_17, INITVAL_16,
        INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10, INITVAL_0F, INITVAL_0E, INITVAL_0D,
        INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09, INITVAL_08, INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04,
        INITVAL_03, INITVAL_02, INITVAL_01, INITVAL_00};
    localparam WIDE = DATA_WIDTH_B == 36;  // DIA, DIB are what A writes and DOA, DOB what B reads

    wire [17:0] dia, dib;
    wire [13:0] ada, adb;
    assign dia = {DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3,
        DIA2, DIA1, DIA0};
    assign dib = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3,
        DIB2, DIB1, DIB0};
    assign ada = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
    assign adb = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
    wire on_a = CEA && !CSA0 && !CSA1 && !CSA2, on_b = CEB && !CSB0 && !CSB1 && !CSB2;
    wire [10:0] first_a = DATA_WIDTH_A == 36 ? {ada[13:5], 2'b00} : DATA_WIDTH_A == 18 ? {ada[13:4], 1'b0} : ada[13:3];
    wire [10:0] first_b = DATA_WIDTH_B == 36 ? {adb[13:5], 2'b00} : DATA_WIDTH_B == 18 ? {adb[13:4], 1'b0} : adb[13:3];
    wire [3:0] enable_a = DATA_WIDTH_A == 36 ? ada[3:0] : DATA_WIDTH_A == 18 ? {2'b00, ada[1:0]} : 4'b0001;
    wire [3:0] enable_b = DATA_WIDTH_B == 18 ? {2'b00, adb[1:0]} : 4'b0001;
    wire [3:0] write_a = on_a && WEA ? enable_a : 4'b0000, write_b = on_b && WEB ? enable_b : 4'b0000;

    reg [8:0] bytes [0:2047];
    reg [35:0] qa = 0, qb = 0;
    integer k;
    initial for (k = 0; k < 2048; k = k + 1) bytes[k] = INITIAL[20 * (k / 2) + 9 * (k % 2) +: 9];
    wire [35:0] data_a = {dib, dia}, data_b = {18'd0, dib};
    wire [35:0] found_a, found_b;
    genvar n;
    generate
        for (n = 0; n < 4; n = n + 1) begin : places
            wire [10:0] a = first_a + n, b = first_b + n, a_in_b = a - first_b, b_in_a = b - first_a;
            assign found_a[9*n +: 9] = bytes[a] ^ {9{a_in_b < 4 && write_b[a_in_b[1:0]]}};
            assign found_b[9*n +: 9] = bytes[b] ^ {9{b_in_a < 4 && write_a[b_in_a[1:0]]}};
            always @(posedge CLKA) if (write_a[n]) bytes[a] <= data_a[9*n +: 9];
            always @(posedge CLKB) if (write_b[n]) bytes[b] <= data_b[9*n +: 9];
        end
        if (DATA_WIDTH_A != 9 && DATA_WIDTH_A != 18 && DATA_WIDTH_A != 36 || DATA_WIDTH_B != 9 && DATA_WIDTH_B != 18
                && (DATA_WIDTH_B != 36 || DATA_WIDTH_A != 36) || REGMODE_A != "NOREG" || REGMODE_B != "NOREG"
                || CSDECODE_A != "0b000" || CSDECODE_B != "0b000" || CLKAMUX != "CLKA" || CLKBMUX != "CLKB"
                || WRITEMODE_A != "NORMAL" && WRITEMODE_A != "READBEFOREWRITE"
                || WRITEMODE_B != "NORMAL" && WRITEMODE_B != "READBEFOREWRITE")
            mode_of_DP16KD_without_a_model refused();
    endgenerate
    wire clear_a = RSTA && RESETMODE == "ASYNC", clear_b = RSTB && RESETMODE == "ASYNC";
    always @(posedge CLKA or posedge clear_a)
        if (clear_a) qa <= 0;
        else if (RSTA) qa <= 0;
        else if (on_a && (!WEA || WRITEMODE_A == "READBEFOREWRITE")) qa <= found_a;
    always @(posedge CLKB or posedge clear_b)
        if (clear_b) qb <= 0;
        else if (RSTB) qb <= 0;
        else if (on_b && (!WEB || WRITEMODE_B == "READBEFOREWRITE")) qb <= found_b;
    wire [17:0] doa = WIDE ? qb[17:0] : qa[17:0], dob = WIDE ? qb[35:18] : qb[17:0];
    assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2,
        DOA1, DOA0} = doa;
    assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2,
        DOB1, DOB0} = dob;
endmodule
