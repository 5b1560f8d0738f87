# Ring 0: everything that runs there. Kept to plain integer instructions, because on
# a PVM host each is emulated (about 1.7 us), and so short that nobody waits for it.
#
#   pvh_start (32 bit) -> long mode -> iretq -> ring3_start (Rust's probe_main)
#   int3 from ring 3  -> gate: eax picks idle, write, io, halt -> iretq
#   interrupt         -> only ever inside idle's hlt: EOI, iretq
#   exception         -> back to ring 3 at fault_entry, which reports it
#
# Selectors are Linux's, so that a ring-3 frame looks the same on every host.

.set ISR_BASE,   0x100200
.set TABLES,     0x101000
.set SEL_CODE0,  0x10
.set SEL_DATA0,  0x18
.set SEL_DATA3,  0x2b
.set SEL_CODE3,  0x33
.set SEL_TSS,    0x40
.set VECTORS,    64
.set BUTTON,     62
.set SPURIOUS,   63

.section .note.Xen, "a", @note
.balign 4
    .long 4                       # name size
    .long 4                       # descriptor size
    .long 18                      # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

# One 16-byte entry per vector.
.section .stub.isr, "ax", @progbits
.code64
.set v, 0
.rept VECTORS
    .balign 16
    .if v == 3
        jmp gate
    .elseif (v == 8) || ((v >= 10) && (v <= 14)) || (v == 17) || (v == 21) || (v == 29) || (v == 30)
        push v                    # the CPU pushed an error code before
        jmp fault
    .elseif v < 32
        push 0
        push v
        jmp fault
    .elseif v == SPURIOUS
        iretq
    .elseif v == BUTTON
        mov dword ptr [rdi], 0
        mov byte ptr [button_event], 1
        iretq
    .else
        mov dword ptr [rdi], 0    # EOI: idle left the register's address in rdi
        iretq
    .endif
    .set v, v + 1
.endr
.balign 16

.section .stub.text, "ax", @progbits
.code32
.global pvh_start
pvh_start:
    cli
    cld
    mov dword ptr [boot_start_info], ebx
    rdtsc
    mov dword ptr [boot_tsc], eax
    mov dword ptr [boot_tsc + 4], edx
    mov eax, 1                    # asked here: a PVM host answers ring 3 as the bare CPU does
    cpuid
    test ecx, ecx                 # bit 31: under a hypervisor
    jns 1f
    mov eax, 0x40000000
    cpuid
    cmp eax, 0x40000010
    jb 1f
    mov eax, 0x40000010
    cpuid
    mov dword ptr [hypervisor_khz], eax
    mov dword ptr [hypervisor_khz + 4], ebx
1:  lgdt [gdt_pointer]
    mov eax, cr4
    or eax, 0x20                  # PAE
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080           # EFER
    rdmsr
    or eax, 0x100                 # LME
    wrmsr
    mov eax, cr0
    or eax, 0x80000000            # PG
    mov cr0, eax
    ljmp SEL_CODE0, offset long_mode
.code64
long_mode:
    mov eax, SEL_DATA0
    mov ss, eax
    mov rsp, offset stack0_top
    lidt [idt_pointer]
    mov eax, SEL_TSS
    ltr ax
    push SEL_DATA3
    push offset __stack_top
    push 2                        # interrupts stay off in ring 3
    push SEL_CODE3
    push offset ring3_start
    iretq

# Calls by int3. eax: 0 idle, 1 write(rsi, rcx), 2 io(edx port, esi value, edi op), else halt.
gate:
    test eax, eax
    jz idle
    dec eax
    jz write
    dec eax
    jz io
halt:
    cli
    hlt
    jmp halt
idle:
    mov edi, 0xfee000b0           # local APIC, EOI register
    sti
    hlt
    cli
    iretq
write:
    mov edx, 0x3f8                # COM1
    rep outsb
    iretq
io:
    mov eax, esi
    test edi, edi
    jz 1f
    dec edi
    jz 2f
    out dx, ax
    iretq
1:  xor eax, eax
    in al, dx
    iretq
2:  out dx, al
    iretq

# Stack: vector, error code, rip, cs, rflags, rsp, ss. Ring 3 gets the first three,
# CR2 and rsp as arguments. A fault of the reporter itself stops the machine.
fault:
    cmp byte ptr [faulted], 0
    jne halt
    mov byte ptr [faulted], 1
    pop rdi
    pop rsi
    mov rdx, [rsp]
    mov rcx, cr2
    mov r8, [rsp + 24]
    mov qword ptr [rsp], offset fault_entry
    mov qword ptr [rsp + 8], SEL_CODE3
    mov qword ptr [rsp + 16], 2
    mov qword ptr [rsp + 24], offset fault_stack_top
    mov qword ptr [rsp + 32], SEL_DATA3
    iretq

.section .stub.tables, "aw", @progbits
tables:
.balign 4096
.global pml4
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
.global pdpt
pdpt:
    .set i, 0
    .rept 4
        .quad pd + i * 4096 + 7
        .set i, i + 1
    .endr
    .fill 508, 8, 0
pd:                               # 4 GiB, user, 2 MiB pages; the top GiB uncached
    .set i, 0
    .rept 2048
        .if i < 1536
            .quad (i << 21) + 0x87
        .else
            .quad (i << 21) + 0x9f
        .endif
        .set i, i + 1
    .endr
idt:
    .set v, 0
    .rept VECTORS
        .word (ISR_BASE + v * 16) & 0xffff
        .word SEL_CODE0
        .byte 0
        .if v == 3
            .byte 0xee            # ring 3 may call this gate
        .else
            .byte 0x8e
        .endif
        .word (ISR_BASE + v * 16) >> 16
        .quad 0
        .set v, v + 1
    .endr
idt_end:
.set TSS, TABLES + (tss - tables)
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff      # 0x10 ring-0 code, 64 bit
    .quad 0x00cf93000000ffff      # 0x18 ring-0 data
    .quad 0x00cffb000000ffff      # 0x20 ring-3 code, 32 bit (unused, keeps the layout)
    .quad 0x00cff3000000ffff      # 0x28 ring-3 data
    .quad 0x00affb000000ffff      # 0x30 ring-3 code, 64 bit
    .quad 0
    .word 103                     # 0x40 task state segment
    .word TSS & 0xffff
    .byte (TSS >> 16) & 0xff
    .byte 0x89, 0
    .byte TSS >> 24
    .quad 0
gdt_end:
.balign 16
tss:
    .long 0
    .quad stack0_top              # RSP0
    .fill 92, 1, 0
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word idt_end - idt - 1
    .quad idt
faulted:
    .byte 0
.global button_event
button_event:
    .byte 0
.balign 16
    .fill 512, 1, 0
stack0_top:
.global boot_tsc
boot_tsc:
    .quad 0
.global hypervisor_khz
hypervisor_khz:
    .long 0, 0                    # TSC, local APIC bus
.global boot_start_info
boot_start_info:
    .long 0

# Ring 3 from here on: native speed everywhere.
.section .text.ring3_start, "ax", @progbits
ring3_start:
    mov rdi, offset __bss_start
    mov rcx, offset __bss_end
    sub rcx, rdi
    xor eax, eax
    rep stosb
    xor ebp, ebp
    call probe_main
    ud2

.section .bss.fault_stack, "aw", @nobits
.balign 16
    .skip 8192 - 8
fault_stack_top:
    .skip 8
