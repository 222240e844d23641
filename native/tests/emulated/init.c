/* init.c: the first process of a Linux under Bochs. Runs /program, hands out the file /kept if that has written one
 * through the second serial line, and switches the machine off. tests/emulator.py packs it, and reads what it says.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/io.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { TTY_MAJOR = 4, SECOND_LINE_MINOR = 65, SWITCH_OFF_PORT = 0x8900 };

static void hand_out(const char *path) {
    static char part[4096];
    struct termios line;
    const int from = open(path, O_RDONLY);
    if (from < 0) return;
    mknod("/second", S_IFCHR | 0600, makedev(TTY_MAJOR, SECOND_LINE_MINOR));
    const int to = open("/second", O_WRONLY | O_NOCTTY);
    if (to < 0 || tcgetattr(to, &line) != 0) return;
    cfmakeraw(&line); /* no byte may change on its way */
    cfsetspeed(&line, B115200);
    if (tcsetattr(to, TCSANOW, &line) != 0) return;
    for (ssize_t got; (got = read(from, part, sizeof part)) > 0;) {
        for (ssize_t at = 0, put; at < got; at += put) {
            put = write(to, part + at, (size_t)(got - at));
            if (put <= 0) return;
        }
    }
    tcdrain(to);
}

int main(void) {
    char *const words[] = {"program", "quick", NULL};
    char *const environment[] = {"LLVM_PROFILE_FILE=/kept", NULL};
    int status = -1;
    const pid_t child = fork();
    if (child == 0) {
        execve("/program", words, environment);
        _exit(127);
    }
    waitpid(child, &status, 0);
    hand_out("/kept");
    printf("\nprogram ended: %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    fflush(stdout);
    tcdrain(STDOUT_FILENO);
    if (iopl(3) == 0) {
        for (const char *word = "Shutdown"; *word != '\0'; word++) outb((unsigned char)*word, SWITCH_OFF_PORT);
    }
    for (;;) pause();
}
