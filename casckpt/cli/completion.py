"""`casckpt completion`: the script a shell reads once to complete commands, runs and metrics."""

from __future__ import annotations

import click

from casckpt.cli.options import command
from casckpt.cli.output import Output

# click's own takes words as bash cuts them: at `@`, `:` and `=` too, which stand within REFs. They
# are put together again here, and of each answer is given what bash puts in the place of `$2`.
_BASH = r"""
%(complete_func)s() {
    local IFS=$'\n' words=() rest=$COMP_LINE word before cut type value answer at
    for ((at = 0; at <= COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        before=${rest%%%%"$word"*}
        [[ $word ]] || before=$rest
        rest=${rest:${#before}+${#word}}
        if [[ $at -gt 0 && -z $before && ($word == [@:=]* || ${words[-1]} == *[@:=]) ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    cut=${words[-1]%%"$2"}
    answer=$(COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
        %(complete_var)s=bash_complete "$1")
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$cut"}") ;;
        esac
    done <<< "$answer"
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@command(
    "completion",
    examples=(
        'eval "$(casckpt completion bash)"       in ~/.bashrc (bash 4.4 or newer)',
        'eval "$(casckpt completion zsh)"        in ~/.zshrc, after compinit',
        "casckpt completion fish > ~/.config/fish/completions/casckpt.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(output: Output, shell: str) -> None:
    """Print a shell completion script.

    It completes commands, options, runs, REFs, tags and metrics; the last four are read from the
    store in use each time.
    """
    from click.shell_completion import get_completion_class

    from casckpt.cli.root import casckpt

    kind = get_completion_class(shell)
    assert kind is not None  # click brings these three
    script = kind(casckpt, {}, "casckpt", "_CASCKPT_COMPLETE")
    # Not script.source(): for bash it starts a bash to ask its version.
    text = (_BASH if shell == "bash" else script.source_template) % script.source_vars()
    if output.json:
        output.document("completion", shell=shell, script=text)
    else:
        output.line(text)
