/* interrupted.c: the first choice of a kernel, met at each of its instructions by another choice. Two threads do that
 * to each other too rarely to test; a processor that stops after every instruction does it at all places in turn.
 */
#if defined(__x86_64__) && defined(__linux__)
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "check.h"

#if defined(__x86_64__) && defined(__linux__)
enum { INSTRUCTIONS_MAX = 5000 };

static volatile sig_atomic_t left;
static volatile sig_atomic_t chosen;

static void after_an_instruction(int number) {
    (void)number;
    if (left-- == 0) {
        chosen = 1;
        (void)cas_kernel_use(CAS_KERNEL_PORTABLE);
    }
}

/* The trap flag is bit 8 of the flags. The red zone below the stack pointer stays as it is. */
static void trap(int on) {
    if (on) {
        __asm__ volatile("lea -128(%%rsp), %%rsp; pushfq; orq $0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
                             : "memory", "cc");
    } else {
        __asm__ volatile("lea -128(%%rsp), %%rsp; pushfq; andq $-257, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
                             : "memory", "cc");
    }
}

/* In a process that has chosen no kernel yet. 0: the other choice came in between and stays; 1: it came too late. */
static int interrupted_after(int instructions) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = after_an_instruction;
    if (sigaction(SIGTRAP, &action, NULL) != 0) return 2;
    left = instructions;
    trap(1);
    const int32_t kernel = cas_kernel_active();
    trap(0);
    if (!chosen) return 1;
    return cas_kernel_active() == CAS_KERNEL_PORTABLE && cas_kernel_available(kernel) ? 0 : 2;
}

void test_interrupted_choice(void) {
    int instructions = 0;
    for (; instructions < INSTRUCTIONS_MAX; instructions++) {
        int status = 0;
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) exit(interrupted_after(instructions));
        CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) < 2);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) break;
    }
    CHECK(instructions > 10 && instructions < INSTRUCTIONS_MAX);
}
#else
void test_interrupted_choice(void) { printf("the choice of a kernel: not interrupted, this needs x86-64 and Linux\n"); }
#endif
